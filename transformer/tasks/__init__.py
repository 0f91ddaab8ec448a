"""Tasks: their kinds (`kind`, `classification`, `regression`), table rows and files (`task`)."""
