"""Search strategies replayed on tables of trials that were all run (or simulated) once: see README.md beside this file."""
