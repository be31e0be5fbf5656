"""Steered models in LangChain: a chat model, a plain-text model and an agent.

from rotalabs_steer.integrations.langchain import SteeredChatModel

chat = SteeredChatModel(model_name="...", steering_configs={"formality": {"vector_path": "vectors/formality"}})
chat.invoke("Ask my landlord to fix the heating.", config={"configurable": {"strengths": {"formality": 0.5}}})
"""

from rotalabs_steer.errors import missing_dependency

try:
    import langchain_core  # noqa: F401  # asked for by name, so that another import that fails keeps its own error
except ImportError as error:
    raise missing_dependency("The LangChain integration", "langchain", error) from error

from rotalabs_steer.integrations.langchain.agent import SteeredAgentExecutor, create_steered_agent
from rotalabs_steer.integrations.langchain.chat_model import SteeredChatModel
from rotalabs_steer.integrations.langchain.llm import SteeredLLM

__all__ = ["SteeredAgentExecutor", "SteeredChatModel", "SteeredLLM", "create_steered_agent"]
