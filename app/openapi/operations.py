"""The operations of the document, each made from a route and what its handler declares."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.routing import Route

from app.openapi.problems import PROBLEMS_OF_ANY, REQUEST_ID_HEADER, make_problem, name_problem
from app.web.deployment import Deployment
from app.web.json import JSON
from app.web.operation import Body, Content, Operation, Schema, find_operation
from app.web.schemas import forbid_nul, make_components, make_example, make_properties


@dataclass(frozen=True, slots=True)
class DocumentedOperation:
    """One method of one path, what its handler declares, and what depends on the models that are loaded."""

    id: str
    path: str
    method: str
    declared: Operation
    description: str
    bodies: Sequence[Body]
    examples: Mapping[str, object]

    @property
    def problems(self) -> set[int]:
        """The statuses of the errors that it may answer."""
        return {*self.declared.problems, *PROBLEMS_OF_ANY}


def list_operations(routes: Sequence[Route], deployment: Deployment) -> list[DocumentedOperation]:
    """List every operation of these routes; raise LookupError for a route that declares none."""
    operations: list[DocumentedOperation] = []
    first_paths: dict[str, str] = {}
    for route in routes:
        declared, path = find_operation(route.endpoint), re.sub(r":\w+}", "}", route.path)
        identity = declared.id + _name_difference(first_paths.setdefault(declared.id, path), path)
        methods = sorted((route.methods or set()) - {"HEAD"})
        operations += [
            DocumentedOperation(
                id=identity if method == methods[0] else f"{identity}{method.capitalize()}",
                path=path,
                method=method.lower(),
                declared=declared,
                description=inspect.getdoc(route.endpoint) or "",
                bodies=declared.bodies(deployment) if declared.bodies else (),
                examples=declared.examples(deployment),
            )
            for method in methods
        ]
    return operations


def _name_difference(first: str, path: str) -> str:
    """Return the words that a path has and its handler's first path has not: they make the operation's id unique."""
    words = [re.findall(r"[^\W_]+", re.sub(r"(\w+)s/{\1}", r"\1", one)) for one in (first, path)]
    return "".join(word.capitalize() for word in words[1] if word not in words[0])


def make_operation(operation: DocumentedOperation, components: dict[str, Schema]) -> Schema:
    """Return one operation."""
    declared = operation.declared
    parameters = _list_parameters(operation)
    answers = {status: _make_answer(status, contents, components) for status, contents in declared.answers.items()}
    for status in operation.problems:
        if status not in answers:
            answers[status] = {"$ref": f"#/components/responses/{name_problem(operation.path, status)}"}
        else:
            answers[status] = _join_answers(answers[status], make_problem(operation.path, status))
    return {
        "operationId": operation.id,
        "tags": [declared.tag],
        "summary": declared.summary,
        "description": operation.description,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": _make_body(operation.bodies)} if operation.bodies else {}),
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }


def _list_parameters(operation: DocumentedOperation) -> list[Schema]:
    """List the parameters in the path and in the query."""
    declared = operation.declared
    in_path = {name: make_components([declared.path[name]])[0][0] for name in re.findall(r"{(\w+)}", operation.path)}
    in_query = make_properties(declared.query) if declared.query else {}
    parameters = [_make_parameter("path", name, schema, operation.examples) for name, schema in in_path.items()]
    parameters += [
        _make_parameter("query", name, forbid_nul(schema), operation.examples) for name, schema in in_query.items()
    ]
    return parameters


def _make_parameter(place: str, name: str, schema: Schema, live_examples: Mapping[str, object]) -> Schema:
    """Return a parameter. Only a required one has an example outside the schema: Swagger UI fills that in."""
    described = {"name": name, "in": place, "required": "default" not in schema, "description": schema["description"]}
    examples = [live_examples[name]] if name in live_examples else schema["examples"]
    rest = {key: value for key, value in schema.items() if key != "description"} | {"examples": examples}
    return {**described, "schema": rest, **({"example": examples[0]} if described["required"] else {})}


def _make_body(bodies: Sequence[Body]) -> Schema:
    """Return the body of a request."""
    content = {}
    for body in bodies:
        schema = body.shape if isinstance(body.shape, dict) else make_components([body.shape])[0][0]
        examples = {name: {"summary": one.summary, "value": one.value} for name, one in body.examples.items()}
        content[body.media_type] = {"schema": schema, "examples": examples}
    return {"required": any(body.is_required for body in bodies), "content": content}


def _make_answer(status: int, contents: Sequence[Content], components: dict[str, Schema]) -> Schema:
    """Return the answers of one status that are not errors."""
    types = [content for content in contents if not isinstance(content, str)]
    content: Schema = {media_type: {} for media_type in contents if isinstance(media_type, str)}
    if types:
        schemas, _ = make_components(types)
        content[JSON] = {
            "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
            "examples": {
                kind.__name__: {"value": make_example(schema, components)}
                for kind, schema in zip(types, schemas, strict=True)
            },
        }
    return {"description": HTTPStatus(status).phrase, "headers": REQUEST_ID_HEADER, "content": content}


def _join_answers(answer: Schema, problem: Schema) -> Schema:
    """Return the answers of a status that may also be an error, in the same media type or another."""
    content = {**problem["content"], **answer["content"]}
    for media_type in problem["content"].keys() & answer["content"].keys():
        schemas = [one["content"][media_type]["schema"] for one in (answer, problem)]
        content[media_type] = {**answer["content"][media_type], "schema": {"anyOf": schemas}}
    return {**problem, "content": content}
