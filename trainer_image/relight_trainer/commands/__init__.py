"""The commands that need torch: `relight <verb>` is the click command `command` of the module <verb> here.

A module's docstring is one line, `relight <verb>`'s short help: the listing shows it without importing the module.
"""
