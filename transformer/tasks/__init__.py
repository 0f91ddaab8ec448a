"""What a task is: its kind (`kind`, `classification`, `regression`), its row and its files (`task`)."""
