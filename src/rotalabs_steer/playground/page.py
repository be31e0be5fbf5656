"""The page: its parts, and the handlers of its events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from rotalabs_steer.errors import OptionError
from rotalabs_steer.playground import panes
from rotalabs_steer.playground.comparisons import Comparison, Request
from rotalabs_steer.playground.opening import TRANSFORMERS, VLLM, Choice, Opener, explain
from rotalabs_steer.steering.interventions import INTERVENTIONS
from rotalabs_steer.steering.scopes import SCOPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rotalabs_steer.playground.comparisons import Backend

_STRONGEST, _NOTHING = "the strongest", "nothing"
_LARGEST = 2.0
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""One model call at a time over all tabs, because the threads of a process share torch's random numbers."""
_SHOW_ANSWERS = """(...given) => {
  document.querySelector('#answers').scrollIntoView({block: innerWidth > 640 ? 'nearest' : 'start'});
  return given;
}"""
_DOWNLOAD = """text => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'playground.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""

Update = dict[Any, Any]
"""New values, by the part of the page that shows them."""


class Page:
    """The page, as `blocks` for Gradio to launch.

    Args:
        choice: the first content of the fields for model, vectors and server.
        start: the backend that is loaded when the page opens.
        fixed: leaves these fields out, so that visitors use `start` and can load nothing else.
    """

    def __init__(self, opener: Opener, choice: Choice, start: Backend | None, *, fixed: bool = False) -> None:
        self._opener, self._start = opener, start
        with gr.Blocks(title="rotalabs-steer playground", analytics_enabled=False) as self.blocks:
            self.backend, self.history, self.shown, self.opened = gr.State(), gr.State([]), gr.State(), gr.State({})
            self.stopping = gr.State({"asked": False})
            with gr.Row(elem_id="head"):
                gr.HTML("<h1>rotalabs-steer <span>playground</span></h1>")
                self.summary = gr.HTML(panes.summary(start), elem_id="summary")
            self._lay_out_setup(choice, open_=start is None, visible=not fixed)
            self._lay_out_prompt()
            with gr.Row(elem_id="desk"):
                with gr.Column(scale=2, min_width=300, elem_id="strengths"):
                    sliders = gr.Column()
                    self._lay_out_settings()
                with gr.Column(scale=5, min_width=340, elem_id="answers"):
                    self._lay_out_answers()
                    with gr.Column(visible=False, elem_id="found") as self.found:
                        self._lay_out_found()
            with sliders:
                gr.render(inputs=[self.backend, self.opened])(self._render_sliders)
            self._wire(fixed=fixed)

    def _lay_out_setup(self, choice: Choice, *, open_: bool, visible: bool) -> None:
        local = choice.engine == TRANSFORMERS
        with gr.Accordion("Model and vectors", open=open_, visible=visible, elem_id="setup") as self.setup:
            self.engine = gr.Radio([TRANSFORMERS, VLLM], value=choice.engine, label="Engine")
            with gr.Row(visible=local) as self.local:
                about = "A folder, a Hugging Face id, or: sample"
                self.model = gr.Textbox(choice.model, label="Model", info=about, elem_id="model")
                about = "Folder of one vector set or of several"
                self.vectors = gr.Textbox(choice.vectors, label="Vectors", info=about, elem_id="vectors")
            about = "Address, as in http://127.0.0.1:8000"
            self.server = gr.Textbox(choice.server, label="Server", info=about, visible=not local, elem_id="server")
            self.load = gr.Button("Load", variant="primary", elem_id="load")
            self.setup_message = gr.HTML(visible=False, elem_id="setup-message")

    def _lay_out_prompt(self) -> None:
        with gr.Row(elem_id="ask"):
            self.prompt = gr.Textbox(
                placeholder="Ask something. Enter sends, Shift+Enter begins a line.", lines=1, max_lines=8, scale=8,
                label="Prompt", elem_id="prompt", show_label=False, container=False,
                interactive=True,
            )  # fmt: skip
            with gr.Row(elem_id="send-row", scale=2):
                self.send = gr.Button("Send", variant="primary", elem_id="send", min_width=80)
                self.stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)

    def _lay_out_settings(self) -> None:
        with gr.Accordion("More settings", open=False, elem_id="settings"):
            self.scope = gr.Dropdown(
                list(SCOPES), value="all", label="Scope", info="Which tokens are steered", interactive=True
            )
            self.intervention = gr.Dropdown(
                list(INTERVENTIONS), value="add", label="Intervention",
                info="What is done with the vectors. Safe ranges are those of add.", interactive=True,
            )  # fmt: skip
            self.new_tokens = gr.Number(128, label="Maximum number of new tokens", precision=0, interactive=True)
            self.temperature = gr.Number(
                0.0, label="Temperature", info="0 is greedy decoding", step=0.1, interactive=True
            )
            self.seed = gr.Number(0, label="Seed", info="The same for both answers", precision=0, interactive=True)

    def _lay_out_answers(self) -> None:
        unsteered, steered = panes.empty_panes()
        self.message = gr.HTML(visible=False, elem_id="message")
        with gr.Row(elem_id="panes"):
            self.unsteered = gr.HTML(unsteered, elem_id="unsteered", min_width=280)
            self.steered = gr.HTML(steered, elem_id="steered", min_width=280)
        with gr.Row(visible=False, elem_id="colors") as self.colors:
            self.color_by = gr.Dropdown(
                [_STRONGEST, _NOTHING], value=_STRONGEST, label="Colour tokens by", min_width=200, scale=0,
                elem_id="color-by",
            )  # fmt: skip
            self.legend = gr.HTML(elem_id="legend", min_width=260, scale=1)

    def _lay_out_found(self) -> None:
        with gr.Tabs(elem_id="snippets"):
            with gr.Tab("Python"):
                self.python = gr.Code(language="python", label="The steered answer", wrap_lines=True, elem_id="python")
            with gr.Tab("JSON"):
                self.json = gr.Code(language="json", label="Body of the request", wrap_lines=True, elem_id="json")
            with gr.Tab("curl"):
                self.curl = gr.Code(language="shell", label="Request to a vLLM server", wrap_lines=True, elem_id="curl")
        self.earlier = gr.Dataset(
            label="History", components=["textbox", "textbox"], headers=["Prompt", "Steering"], samples=[],
            type="index", layout="table", elem_id="history",
        )  # fmt: skip
        self.export = gr.Button("Export history as JSON", size="sm", elem_id="export")
        self.exported = gr.Textbox(elem_classes="not-shown")

    def _wire(self, *, fixed: bool) -> None:
        chosen = [self.engine, self.model, self.vectors, self.server]
        loaded = [self.backend, self.opened, self.summary, self.setup, self.setup_message, self.intervention,
                  self.color_by, self.colors]  # fmt: skip
        self.blocks.load(self._begin, None, loaded, **_QUIET)
        if not fixed:
            self.engine.change(self._show_fields, self.engine, [self.local, self.server], **_QUIET)
            self.load.click(
                self._open, chosen, loaded, api_visibility="private", show_progress_on=self.load, **_ONE_AT_A_TIME
            )
        self.stop.click(self._stop, self.stopping, self.stop, **_QUIET)
        self.color_by.change(
            self._recolor, [self.shown, self.color_by], [self.unsteered, self.steered, self.legend], **_QUIET
        )
        self.earlier.click(
            self._reopen, [self.earlier, self.history, self.color_by],
            [self.prompt, self.scope, self.intervention, self.new_tokens, self.temperature, self.seed, self.opened,
             *self._answer_parts()], **_QUIET,
        )  # fmt: skip
        self.export.click(self._export, self.history, self.exported, **_QUIET).then(None, self.exported, js=_DOWNLOAD)

    def _answer_parts(self) -> list[Any]:
        return [self.message, self.unsteered, self.steered, self.colors, self.legend, self.found, self.python,
                self.json, self.curl, self.shown]  # fmt: skip

    def _render_sliders(self, backend: Backend | None, opened: dict[str, float]) -> None:
        """One slider for each behaviour, and the handler of Send, which reads all of them."""
        behaviors = () if backend is None else backend.behaviors
        gr.HTML(panes.strength_legend(behaviors) if behaviors else panes.how_to_start())
        sliders = [
            gr.Slider(
                -_LARGEST, _LARGEST, opened.get(behavior.name, 0.0), step=0.05, label=behavior.name,
                info=panes.strength_remark(behavior), buttons=["reset"], interactive=True,
                elem_classes=["strength", "tuned" if behavior.safe_range else "untuned"],
            )
            for behavior in behaviors
        ]  # fmt: skip

        def answer(*given: Any) -> Iterator[Update]:
            numbers, others = given[: len(behaviors)], given[len(behaviors) :]
            strengths = {behavior.name: float(number) for behavior, number in zip(behaviors, numbers, strict=True)}
            yield from self._answer(strengths, *others)

        asked = [self.backend, self.stopping, self.history, self.color_by, self.prompt, self.scope, self.intervention,
                 self.new_tokens, self.temperature, self.seed]  # fmt: skip
        gr.on(
            [self.send.click, self.prompt.submit], answer, [*sliders, *asked],
            [self.send, self.stop, self.history, self.earlier, *self._answer_parts()], js=_SHOW_ANSWERS,
            **_ONE_AT_A_TIME, **_QUIET,
        )  # fmt: skip

    def _begin(self) -> Update:
        return self._loaded(self._start) if self._start is not None else {self.backend: None}

    def _open(self, engine: str, model: str, vectors: str, server: str) -> Update:
        try:
            return self._loaded(self._opener.open(Choice(engine, model, vectors, server)))
        except Exception as error:
            return {self.setup_message: gr.HTML(panes.message(explain(error)), visible=True)}

    def _loaded(self, backend: Backend) -> Update:
        names = [behavior.name for behavior in backend.behaviors]
        return {
            self.backend: backend,
            self.opened: {},
            self.summary: panes.summary(backend),
            self.setup: gr.Accordion(open=False),
            self.setup_message: gr.HTML(visible=False),
            self.intervention: gr.Dropdown(list(backend.interventions), value="add"),
            self.color_by: gr.Dropdown([_STRONGEST, *names, _NOTHING], value=_STRONGEST),
            self.colors: gr.Row(visible=False),
        }

    def _show_fields(self, engine: str) -> Update:
        local = engine == TRANSFORMERS
        return {self.local: gr.Row(visible=local), self.server: gr.Textbox(visible=not local)}

    def _answer(
        self, strengths: dict[str, float], backend: Backend | None, stopping: dict[str, bool],
        history: list[Comparison], color_by: str, prompt: str, scope: str, intervention: str, new_tokens: int | None,
        temperature: float | None, seed: int | None,
    ) -> Iterator[Update]:  # fmt: skip
        """Yields both answers as they grow, then colours, snippets and history; or a message, if something fails."""
        emptied: Update = {}
        try:
            if backend is None:
                raise OptionError("No model is loaded. Name one and its vectors under “Model and vectors”.")
            request = Request(
                prompt or "", strengths, scope, intervention, int(new_tokens or 0), temperature or 0.0, int(seed or 0)
            )
            answers = backend.compare(request)
            stopping["asked"] = False
            yield {self.message: gr.HTML(visible=False), self.colors: gr.Row(visible=False), **self._busy(True)}
            emptied = {self.found: gr.Column(visible=False), **self._show(panes.empty_panes())}
            texts: tuple[str, ...] = ("", "")
            for texts in answers:
                written = panes.written_panes(texts, request.steering)
                yield self._show(written)
                if stopping["asked"]:
                    answers.close()
                    yield self._show(map(panes.stopped, written)) | self._busy(False)
                    return
            projections = backend.project(request, *texts) if len(texts) > 1 else None
            comparison = Comparison(backend.model, request, texts[0], texts[-1], projections, backend.snippets(request))
            history = [comparison, *history]
            samples = [[each.request.prompt, each.request.steering] for each in history]
            yield {
                self.history: history,
                self.earlier: gr.Dataset(samples=samples),
                **self._compared(comparison, color_by),
                **self._busy(False),
            }
        except Exception as error:
            failed = gr.HTML(panes.message(explain(error)), visible=True)
            yield {self.message: failed, **emptied, **self._busy(False)}

    def _busy(self, busy: bool) -> Update:
        return {self.send: gr.Button(interactive=not busy), self.stop: gr.Button(interactive=busy)}

    def _show(self, both: Iterable[str]) -> Update:
        return dict(zip((self.unsteered, self.steered), both, strict=True))

    def _stop(self, stopping: dict[str, bool]) -> Update:
        stopping["asked"] = True
        return {self.stop: gr.Button(interactive=False)}

    def _compared(self, comparison: Comparison, color_by: str) -> Update:
        return self._recolor(comparison, color_by) | {
            self.message: gr.HTML(visible=False),
            self.colors: gr.Row(visible=comparison.projections is not None),
            self.found: gr.Column(visible=True),
            self.python: comparison.snippets.python,
            self.json: comparison.snippets.json,
            self.curl: comparison.snippets.curl,
            self.shown: comparison,
        }

    def _recolor(self, comparison: Comparison | None, color_by: str) -> Update:
        if comparison is None:
            return {}
        behavior = comparison.request.strongest if color_by == _STRONGEST else color_by
        if behavior not in (comparison.projections or {}):
            behavior = None
        return {self.legend: panes.color_legend(behavior), **self._show(panes.compared_panes(comparison, behavior))}

    def _reopen(self, number: int, history: Sequence[Comparison], color_by: str) -> Update:
        comparison = history[number]
        request = comparison.request
        return self._compared(comparison, color_by) | {
            self.prompt: request.prompt,
            self.scope: request.scope,
            self.intervention: request.intervention,
            self.new_tokens: request.max_new_tokens,
            self.temperature: request.temperature,
            self.seed: request.seed,
            self.opened: dict(request.strengths),
        }

    def _export(self, history: Sequence[Comparison]) -> str:
        return json.dumps([comparison.to_record() for comparison in history], indent=2, ensure_ascii=False)
