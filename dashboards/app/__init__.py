"""The live app: ``fedsim dashboard`` (needs the extra ``dashboard``); ``main`` is its script.

main       the page: sidebar, views, following of runs in progress
loading    run folders as they are now, read again only where they changed
choosing   which runs, targets and budgets: everything a person can set
views      one function per view
ahead      reads and draws before it is asked for
"""
