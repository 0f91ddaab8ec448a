"""Tasks: their kinds (`kind`, `classification`, `regression`, `multilabel`), table rows and files (`task`)."""
