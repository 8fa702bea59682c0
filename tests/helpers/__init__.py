"""Models, inputs and runs that several tests share; no tests."""
