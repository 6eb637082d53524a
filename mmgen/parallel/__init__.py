"""One program on many devices: a mesh of sizes, one table of rules, several hosts. Only preflight.py knows of tasks."""
