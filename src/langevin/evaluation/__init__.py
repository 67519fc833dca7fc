"""Measurements of what the library makes: samplers against exact solutions, and pictures against their prompts."""
