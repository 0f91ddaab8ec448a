"""Tasks: their kinds (`kind` and one module each), table rows and files (`task`)."""
