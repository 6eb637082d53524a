"""One program on many devices: a mesh of sizes, one table of rules, several hosts. Nothing here knows of models or tasks."""
