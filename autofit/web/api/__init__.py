"""`/api/...`: one module a subject. Each function parses, makes one library call, answers."""
