"""Write manifests that serve a model repository on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from generator.cli.console import say
from generator.cli.options import RepositoryOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.deploy.kustomize import Layer
    from generator.deploy.pod import Served
    from generator.deploy.source import Source

SOURCE, SCALING = "Where pods get the repository from: one of the first three", "Scaling"  # panels of --help
PULLER = "trtgen-release:26.10"  # docs/kubernetes.md says how it is built

OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the manifests go.")]
ImageOption = Annotated[
    str | None,
    typer.Option(metavar="IMAGE", help="Tritonserver, in a registry of the cluster's.  [default: compose.yaml's]"),
]
NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="What everything is called.  [default: like the model]")
]
NamespaceOption = Annotated[str, typer.Option(metavar="NAME", help="The namespace.")]
RepositoryImageOption = Annotated[
    str | None,
    typer.Option(metavar="IMAGE", help="An image with the repository in its folder /models.", rich_help_panel=SOURCE),
]
ReleaseOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Releases in an object store: s3://bucket/models.", rich_help_panel=SOURCE),
]
DirectOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="A folder in an object store that Triton reads itself.", rich_help_panel=SOURCE),
]
IdOption = Annotated[
    str | None, typer.Option(metavar="ID", help="With --release: which; rolled back by its id.", rich_help_panel=SOURCE)
]
LeastOption = Annotated[int, typer.Option(min=1, metavar="N", help="Pods at least.", rich_help_panel=SCALING)]
MostOption = Annotated[int, typer.Option(min=1, metavar="N", help="Pods at most.", rich_help_panel=SCALING)]
_HEAD = "# Made by trtgen, which overwrites it unless it was edited: put changes into an overlay on top.\n"
DiscardOption = Annotated[bool, typer.Option("--discard-edits", help="Overwrite files that somebody edited by hand.")]


def kubernetes(
    *,
    repository: RepositoryOption = Path("model_repository"),
    output: OutputOption = Path("deploy"),
    image: ImageOption = None,
    name: NameOption = None,
    namespace: NamespaceOption = "default",
    repository_image: RepositoryImageOption = None,
    release: ReleaseOption = None,
    direct: DirectOption = None,
    channel: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --release: what it points to as a pod starts.", rich_help_panel=SOURCE),
    ] = None,
    release_id: IdOption = None,
    release_image: Annotated[
        str, typer.Option(metavar="IMAGE", help="With --release: trtgen, which pulls it.", rich_help_panel=SOURCE)
    ] = PULLER,
    store_port: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="N",
            help="With --release and --direct: a port that pods must reach; repeatable.  [default: the URL's, or 443]",
            show_default=False,
            rich_help_panel=SOURCE,
        ),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Secret in the cluster whose keys are the store's variables, such as AWS_ACCESS_KEY_ID.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    min_replicas: LeastOption = 2,
    max_replicas: MostOption = 8,
    prometheus_url: Annotated[
        str, typer.Option(metavar="URL", help="What KEDA asks.", rich_help_panel=SCALING)
    ] = "http://prometheus-operated.monitoring.svc:9090",
    monitoring_namespace: Annotated[
        str, typer.Option(metavar="NAME", help="Where Prometheus runs.", rich_help_panel=SCALING)
    ] = "monitoring",
    discard_edits: DiscardOption = False,
) -> None:
    """Write a Kustomize base and overlays for the processor, for Prometheus and for KEDA.

    Example: trtgen deploy kubernetes --repository-image registry.example/models:7
    """
    from generator.deploy.kubernetes import Scaling, make_layers

    source = _choose_source(
        repository_image, release, direct, channel, release_id, release_image, secret, ports=store_port or ()
    )
    served = _describe(repository, source, name=name, namespace=namespace, image=image)
    scaling = Scaling(least=min_replicas, most=max_replicas, prometheus=prometheus_url, monitoring=monitoring_namespace)
    layers = make_layers(served, scaling)
    _write(output, layers, served, discard_edits=discard_edits)
    _remark(served)
    if secret:
        say(f"note: the namespace {namespace} must have the Secret {secret}")
    for layer in layers[1:]:
        say(f"kubectl apply --dry-run=server -k {output / layer.folder}")


def kserve(
    *,
    repository: RepositoryOption = Path("model_repository"),
    output: OutputOption = Path("deploy"),
    image: ImageOption = None,
    name: NameOption = None,
    namespace: NamespaceOption = "default",
    repository_image: RepositoryImageOption = None,
    release: ReleaseOption = None,
    direct: DirectOption = None,
    release_id: IdOption = None,
    min_replicas: LeastOption = 2,
    max_replicas: MostOption = 8,
    discard_edits: DiscardOption = False,
) -> None:
    """Write a ServingRuntime and an InferenceService for KServe's deployment mode Standard.

    Example: trtgen deploy kserve --release s3://bucket/models --release-id ID
    """
    from generator.deploy.kserve import make_layer
    from generator.deploy.kubernetes import Scaling

    source = _choose_source(repository_image, release, direct, None, release_id, PULLER, None)
    served = _describe(repository, source, name=name, namespace=namespace, image=image)
    layer = make_layer(served, Scaling(least=min_replicas, most=max_replicas))
    _write(output, [layer], served, discard_edits=discard_edits)
    _remark(served)
    say(f"kubectl apply --dry-run=server -k {output / layer.folder}")


def _choose_source(
    repository_image: str | None,
    release: str | None,
    direct: str | None,
    channel: str | None,
    release_id: str | None,
    release_image: str,
    secret: str | None,
    *,
    ports: Sequence[int] = (),
) -> Source:
    from generator.deploy.pod import check_name
    from generator.deploy.source import DirectSource, ImageSource, ReleaseSource

    if sum(one is not None for one in (repository_image, release, direct)) != 1:
        raise typer.BadParameter("give one of --repository-image, --release and --direct")
    if (channel or release_id) and release is None:
        raise typer.BadParameter("--channel and --release-id go with --release")
    if release is not None and bool(channel) == bool(release_id):
        raise typer.BadParameter("--release needs one of --channel and --release-id")
    if ports and repository_image is not None:
        raise typer.BadParameter("--store-port goes with --release and --direct")
    if secret is not None:
        if repository_image is not None:
            raise typer.BadParameter("--secret goes with --release and --direct")
        check_name(secret, "secret", longest=253)
    store_ports = tuple(dict.fromkeys(ports))
    if repository_image is not None:
        return ImageSource(image=repository_image)
    if release is not None:
        return ReleaseSource(
            url=release,
            puller=release_image,
            channel=channel or "",
            release=release_id or "",
            secret=secret or "",
            store_ports=store_ports,
        )
    return DirectSource(url=direct or "", secret=secret or "", store_ports=store_ports)


def _describe(repository: Path, source: Source, *, name: str | None, namespace: str, image: str | None) -> Served:
    from generator.deploy.pod import describe_served
    from generator.server.hardening import find_image_release, judge_release

    served = describe_served(repository, source, name=name or "", namespace=namespace, image=image or "")
    for remark in judge_release(find_image_release(served.image)):
        say(remark)
    return served


def _write(output: Path, layers: list[Layer], served: Served, *, discard_edits: bool) -> None:
    from generator.deploy.manifests import Manifests
    from generator.deploy.rules import refuse_problems
    from generator.files import expand_home
    from generator.written import write_files, write_yaml

    for layer in layers:
        external = {("Secret", served.source.secret)}
        refuse_problems(Manifests(objects=layer.merge(), external=external, members=served.needs.members))
    files = {path: _HEAD + write_yaml(documents) for layer in layers for path, documents in layer.write().items()}
    for path, change in write_files(files, expand_home(output), discard_edits=discard_edits).items():
        print(f"{change:<9} {path}")


def _remark(served: Served) -> None:
    """Say what the manifests take for granted."""
    needs = served.needs
    say(f"note: the cluster must be able to pull {served.image} (docs/kubernetes.md)")
    for plan in needs.unknown_plans:
        say(f"warning: {plan} has no passport: on which GPUs it runs is not known, and no node is ruled out")
    if needs.gpu:
        say("note: while pods are replaced, one GPU more than pods is needed")
