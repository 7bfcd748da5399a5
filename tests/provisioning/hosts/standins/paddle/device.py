def synchronize():
    pass
