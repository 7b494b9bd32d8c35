"""Runs campaigns: configuration, composition of the rooms, Prefect flows, command line."""
