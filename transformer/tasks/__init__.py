"""Tasks: their kinds (`kind`, `classification`, `regression`, `multilabel`, `spans`), table rows and files (`task`)."""
