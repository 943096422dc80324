"""The pqtun command: one module a subcommand, argument parsing and printing only."""
