"""The line of docs/design.md over Ray. The only folder that imports ray; only the CLI imports it."""
