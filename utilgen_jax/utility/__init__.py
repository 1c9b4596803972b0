"""How much a sample is worth to the task: difficulty and weights; nothing in here touches the generator."""
