"""The team's service over the trial database: REST, live events and pages, by the same library calls as the command line."""
