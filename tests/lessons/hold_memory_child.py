"""Hold 200 MiB, say "ready", and end with the first line of input."""

block = bytearray(b"x") * (200 << 20)
print("ready", flush=True)
input()
