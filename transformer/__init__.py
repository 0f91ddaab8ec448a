"""The package the four scripts share: model, tokenizer, optimizer, losses, tasks, training loop, stage folders."""
