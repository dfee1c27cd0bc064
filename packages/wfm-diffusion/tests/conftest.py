from hypothesis import settings

settings.register_profile("suite", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("suite")
