"""Columns on a Ray cluster, whose nodes need not see the project's folder.

A `keeper`, one detached process of a project, is Ray's driver: it hands out tasks, takes what nodes
send and writes it into the project. On a node a task runs the same worker as everywhere in a
workspace of its own, and sends what that leaves. Ray is imported by the keeper and on nodes alone.
"""
