"""The HTTP routes of steering, on vLLM's own API server.

`GET /v1/steering` lists the behaviours, and `POST /v1/steering/reload` reads their folder again. Like all of `/v1`,
they need the server's API key. A request that asks for steering on a route that does not steer is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.frontend import WIRE_KEY, SteeringFrontend
from rotalabs_steer.errors import SteeringError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STEERABLE_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class SteeringEndpoints:
    """The class behind vLLM's entry point `vllm.endpoint_plugins`. vLLM loads it only if `VLLM_PLUGINS` names it."""

    name = "rotalabs_steer"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Adds the routes to vLLM's FastAPI application."""
        from starlette.responses import JSONResponse

        async def list_behaviors(request: Any) -> JSONResponse:
            catalogue = SteeringFrontend.of_server().catalogue
            return JSONResponse(
                {
                    "object": "list",
                    "model": None if catalogue is None else catalogue.model.name,
                    "max_strength": None if catalogue is None else catalogue.max_strength,
                    "data": [] if catalogue is None else catalogue.describe(),
                }
            )

        async def reload(request: Any) -> JSONResponse:
            if not request.app.state.steering_has_key:
                return _error(403, "Start the server with --api-key to change its vectors while it runs.")
            frontend, engine = SteeringFrontend.of_server(), request.app.state.engine_client
            try:
                fresh = frontend.read_again()
                arguments = frontend.reload_arguments(fresh)
                frontend.take_over(fresh, await engine.collective_rpc("steering_reload", args=arguments))
            except (SteeringError, OSError) as error:
                return _error(400, f"The vectors stay as they were: {error}")
            return await list_behaviors(request)

        app.add_route("/v1/steering", list_behaviors, methods=["GET"])
        app.add_route("/v1/steering/reload", reload, methods=["POST"])
        app.add_middleware(RejectSteeringOnOtherRoutes)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Called when the engine runs. Compares the vectors of this server with those that the workers have read.

        The workers may have read the folder at another time, or on another machine.
        """
        from vllm import envs

        frontend = SteeringFrontend.of_server()
        if frontend.catalogue is not None:
            await engine_client.collective_rpc("steering_check", args=(frontend.catalogue.key,))
        state.steering_has_key = bool([key for key in (args.api_key or [envs.VLLM_API_KEY]) if key])
        frontend.keep_metrics()


class RejectSteeringOnOtherRoutes:
    """ASGI middleware that refuses requests whose `steering` vLLM would ignore and answer unsteered."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: D102 - the ASGI protocol
        elsewhere = scope["type"] == "http" and scope["path"] not in STEERABLE_PATHS
        if not elsewhere or scope["method"] != "POST" or not scope["path"].startswith(("/v1", "/v2", "/inference")):
            await self._app(scope, receive, send)
            return
        # Reading the body consumes its messages, so they are kept and given to the application afterwards.
        messages, body, more = [], b"", True
        while more:
            messages.append(await receive())
            body += messages[-1].get("body", b"")
            more = messages[-1].get("more_body", False)
        if _asks_for_steering(body):
            message = f"{scope['path']} does not steer; use one of: {', '.join(STEERABLE_PATHS)}."
            await _error(400, message)(scope, receive, send)
            return

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def _asks_for_steering(body: bytes) -> bool:
    if f'"{WIRE_KEY}"'.encode() not in body:
        return False
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get(WIRE_KEY) is not None


def _error(status: int, message: str) -> Any:
    from starlette.responses import JSONResponse

    error = {"message": message, "type": "BadRequestError", "param": WIRE_KEY, "code": status}
    return JSONResponse({"error": error}, status_code=status)
