"""Exact integer arithmetic: several implementations of each kernel, one result."""
