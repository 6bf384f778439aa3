"""Which environment variables may hold a judge's key, and whom their values may be sent to."""

import re
from urllib.parse import urlsplit

from calibration.errors import ConfigurationError

_NAME = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")

OWNERS: dict[str, tuple[str, ...]] = {
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "AZURE_OPENAI_API_KEY": ("openai.azure.com", "services.ai.azure.com"),
    "CEREBRAS_API_KEY": ("api.cerebras.ai",),
    "COHERE_API_KEY": ("api.cohere.com", "api.cohere.ai"),
    "CO_API_KEY": ("api.cohere.com", "api.cohere.ai"),
    "DEEPSEEK_API_KEY": ("api.deepseek.com",),
    "FIREWORKS_API_KEY": ("api.fireworks.ai",),
    "GEMINI_API_KEY": ("generativelanguage.googleapis.com",),
    "GOOGLE_API_KEY": ("generativelanguage.googleapis.com",),
    "GROQ_API_KEY": ("api.groq.com",),
    "MISTRAL_API_KEY": ("api.mistral.ai",),
    "NVIDIA_API_KEY": ("integrate.api.nvidia.com",),
    "OPENAI_API_KEY": ("api.openai.com",),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
    "PERPLEXITY_API_KEY": ("api.perplexity.ai",),
    "SAMBANOVA_API_KEY": ("api.sambanova.ai",),
    "TOGETHER_API_KEY": ("api.together.xyz", "api.together.ai"),
    "XAI_API_KEY": ("api.x.ai",),
    # Of services that judge nothing.
    **dict.fromkeys(
        (
            *("COMET_API_KEY", "DATADOG_API_KEY", "DD_API_KEY", "ELEVENLABS_API_KEY", "LANGCHAIN_API_KEY"),
            *("LANGSMITH_API_KEY", "PINECONE_API_KEY", "PREFECT_API_KEY", "SENDGRID_API_KEY"),
            *("STRIPE_API_KEY", "TAVILY_API_KEY", "WANDB_API_KEY"),
        ),
        (),
    ),
}
"""Variables that belong to one service, by custom or by its client, and that service's hosts."""


def check_name(variable: str) -> str:
    """The name of a variable that may hold a key.

    An experiment file names it, and would otherwise have any secret of the environment sent anywhere.

    Raises:
        ValueError: Its name does not say that it holds a key for a service.
    """
    if not _NAME.fullmatch(variable):
        raise ValueError(
            "key_variable must be a variable whose name ends in _API_KEY, such as OPENROUTER_API_KEY, or "
            f"empty; got {variable!r}. Put the key of a service of your own in a variable of that kind"
        )
    return variable


def check_owner(variable: str, url: str) -> None:
    """See that a key goes to nobody but the service that it is for.

    Raises:
        ConfigurationError: The variable belongs to another service.
    """
    host = urlsplit(url).hostname or ""
    hosts = OWNERS.get(variable)
    if hosts is None or any(host == own or host.endswith(f".{own}") for own in hosts):
        return
    where = f"is for {' and '.join(hosts)} alone" if hosts else "is for a service that judges nothing"
    raise ConfigurationError(
        f"judge.key_variable must be a variable with a key for {host}; {variable} {where}. Put the key of "
        'that server in a variable of your own and name it, such as "MINE_API_KEY", or give key_variable = ""'
    )
