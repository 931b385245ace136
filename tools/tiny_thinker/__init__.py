"""How tiny-thinker is made and measured.

``curriculum`` makes the problems and the texts, ``train`` makes the weights from
nothing, ``evaluate`` measures them, ``agreement`` compares what the engines write.
"""
