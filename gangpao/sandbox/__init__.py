"""Model Sandbox: many small training runs, the laws fitted to them, and the recipe they give for a large one."""
