"""Whether the ranks of a job hold equal states: compared by digest, without a collective.

digest.py    tensors -> digests, on their device
reading.py   objects -> the digests of their states
compare.py   digests of all ranks -> what differs; pure
watch.py     the exchange, in a thread of its own
ranks.py     when it is compared, and what follows from a difference
"""
