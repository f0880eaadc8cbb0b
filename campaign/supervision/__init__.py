"""Processes that outlive others and clean up after them: watchdogs of drivers and servers, and `campaign reap`.

A process is identified by boot, process id and start time (`identity`), never by its name alone.
"""
