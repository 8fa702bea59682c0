"""Counting and looking at models; the library side of the tools."""
