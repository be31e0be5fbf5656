"""A LangChain agent with a steered model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError, missing_dependency
from rotalabs_steer.integrations.langchain.chat_model import SteeredChatModel
from rotalabs_steer.integrations.langchain.llm import SteeredLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool


class SteeredAgentExecutor:
    """LangChain's agent (`create_agent`) with a steered model. It calls tools until it has an answer.

    Args:
        llm: a `SteeredChatModel`, a `SteeredLLM` (whose model is then used for chat with the same strengths), or any
            other chat model, which is not steered.
        tools: LangChain tools, or functions with docstrings.
        system_prompt: the system message of every conversation.
        max_iterations: the maximum number of calls of the model for one input.
        verbose: whether every step is printed.

    Attributes:
        agent: the compiled graph, for streaming, memory and several messages, which `run` does not offer.
    """

    def __init__(
        self,
        llm: SteeredChatModel | SteeredLLM | BaseChatModel,
        tools: Sequence[BaseTool | Callable[..., Any]],
        system_prompt: str | None = None,
        max_iterations: int = 10,
        verbose: bool = False,
    ) -> None:
        try:
            from langchain.agents import create_agent
            from langchain.agents.middleware import ModelCallLimitMiddleware
        except ImportError as error:
            raise missing_dependency("SteeredAgentExecutor", "langchain", error) from error
        if max_iterations < 1:
            raise OptionError(f"max_iterations is {max_iterations}; the model has to be called at least once.")
        self.llm = SteeredChatModel.sharing(llm) if isinstance(llm, SteeredLLM) else llm
        self.max_iterations = max_iterations
        self.agent: Any = create_agent(
            self.llm,
            list(tools),
            system_prompt=system_prompt,
            middleware=[ModelCallLimitMiddleware(run_limit=max_iterations, exit_behavior="end")],
            debug=verbose,
        )

    def run(
        self, input: str, chat_history: Sequence[BaseMessage] | None = None, config: RunnableConfig | None = None
    ) -> str:
        """The agent's answer to an input, or a message that it needed more than `max_iterations` calls.

        Args:
            config: LangChain's config for this run, such as `{"configurable": {"strengths": {...}}}`.
        """
        return _answer(self.agent.invoke(_conversation(input, chat_history), self._limited(config)))

    async def arun(
        self, input: str, chat_history: Sequence[BaseMessage] | None = None, config: RunnableConfig | None = None
    ) -> str:
        """Does the same as `run`, for asyncio."""
        return _answer(await self.agent.ainvoke(_conversation(input, chat_history), self._limited(config)))

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes a behaviour's strength. Raises KeyError for an unknown behaviour."""
        self._steered.set_strength(behavior, strength)

    def get_strength(self, behavior: str) -> float:
        """The present strength of a behaviour. Raises KeyError for an unknown one."""
        return self._steered.get_strength(behavior)

    def disable_steering(self, behavior: str | None = None) -> None:
        """Sets the strength of one behaviour, or of all, to 0."""
        self._steered.disable_steering(behavior)

    def enable_steering(self, behavior: str, strength: float = 1.0) -> None:
        """Sets the strength of a behaviour."""
        self._steered.enable_steering(behavior, strength)

    @property
    def _steered(self) -> SteeredChatModel:
        if not isinstance(self.llm, SteeredChatModel):
            raise OptionError(
                f"The agent's model is a {type(self.llm).__name__}, which is not steered. Use a SteeredChatModel."
            )
        return self.llm

    def _limited(self, config: RunnableConfig | None) -> RunnableConfig:
        """The config with a limit of graph steps that is high enough for `max_iterations` calls of the model."""
        return {"recursion_limit": 10 + 5 * self.max_iterations, **(config or {})}


def create_steered_agent(
    model_name: str,
    steering_configs: Mapping[str, Mapping[str, Any]] | None = None,
    tools: Sequence[BaseTool | Callable[..., Any]] | None = None,
    system_prompt: str | None = None,
    device: str = "auto",
    verbose: bool = False,
) -> SteeredAgentExecutor:
    """Loads a model and returns a `SteeredAgentExecutor` for it."""
    configs = {behavior: dict(config) for behavior, config in (steering_configs or {}).items()}
    chat = SteeredChatModel(model_name=model_name, steering_configs=configs, device=device)
    return SteeredAgentExecutor(chat, tools or [], system_prompt, verbose=verbose)


def _conversation(text: str, history: Sequence[BaseMessage] | None) -> dict[str, Any]:
    return {"messages": [*(history or ()), {"role": "user", "content": text}]}


def _answer(state: dict[str, Any]) -> str:
    return str(state["messages"][-1].text)
