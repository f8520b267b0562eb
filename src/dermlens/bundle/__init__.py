"""What a model stores: the bundle folder, its card, and the facts that judge an answer."""
