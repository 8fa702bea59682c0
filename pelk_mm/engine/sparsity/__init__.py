"""Dynamic sparsity: masks, how they are enforced, SNIP, their saved state."""
