"""The playground: a page in the browser that shows a model's answers steered and unsteered, side by side."""
