"""Runs as HTML pages and tables for people to read."""
