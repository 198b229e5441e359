"""Runs as pages and tables for people."""
