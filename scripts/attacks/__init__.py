"""What the table of attacks against defences is made of; the command is `scripts.bench.attacks`.

Start with `workload.py`: what is trained. Then `runners.py`: who trains it, under which attack and which defence.
"""
