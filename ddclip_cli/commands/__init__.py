"""One thin file a command: load the recipe, call one function, print its result."""
