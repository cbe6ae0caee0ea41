"""What alignment costs, by fine-tuners, networks, noise and draws: the parts of the benchmark."""
