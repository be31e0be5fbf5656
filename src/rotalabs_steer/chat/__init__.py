"""How a conversation becomes the text and the tokens that a model reads."""
