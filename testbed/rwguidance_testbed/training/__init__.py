"""The training of models: the loop, its options, averages, optimizer, buffer and cards."""
