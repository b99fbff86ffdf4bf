"""What flows are made of, in rooms: each says in its docstring what lives there, what it may import, where to start."""
