"""What a model was made of: put together from the signed records of the steps, and kept in the store."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hardcase.errors import HardcaseError
from hardcase.provenance.attestations import Link, follow, gaps
from hardcase.provenance.code import LOCK, code_digest, keep_code
from hardcase.provenance.products import check_product
from hardcase.provenance.sbom import sbom
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import ENVELOPE, FOLDER, Provenance, Resource, named
from hardcase.registry.ledger import Version
from hardcase.store.store import Store

BASE: Final = "base_model"
NEEDED: Final = ("ingest", "sft", "grpo", "evaluate", "drift")


@dataclass(frozen=True)
class Launch:
    """What the launcher says of a run.

    Attributes:
        circumstances: of this step: run, git commit, container image.
        champion: the one to beat when the run was launched; empty for none.
        fingerprint: of source, configuration, seed and code.
        code: sha256 of the code.
        seed: of everything that is drawn.
    """

    circumstances: Mapping[str, str]
    champion: str
    fingerprint: str
    code: str
    seed: int


@dataclass(frozen=True)
class Account:
    """Everything that a model was made of and that was made on the way, kept in the store.

    Attributes:
        links: by step.
        objects: by name.
        launch: of the run.
        config: by step.
        store: where they are kept.
    """

    links: Mapping[str, Link]
    objects: Mapping[str, Resource]
    launch: Launch
    config: Mapping[str, Any]
    store: Store

    def read(self, name: str) -> bytes:
        """Return the bytes of the object of that name.

        Raises:
            HardcaseError: it is missing or altered.
        """
        return self.store.get_object(self.objects[name].digest)

    @property
    def model(self) -> str:
        """Digest of the model's folder."""
        return self.objects["model"].digest

    @property
    def evaluation(self) -> str:
        """sha256 of the table it was judged by."""
        return self.objects["evaluation"].digest

    @property
    def reference(self) -> str:
        """sha256 of the evaluation that drift compared with, or empty."""
        return str(self.links["drift"].parameters["reference"])

    @property
    def source(self) -> str:
        """URI of the data."""
        return str(self.links["ingest"].parameters["source"][0])

    def provenance(self, name: str, champion: Version | None, gate: str) -> Provenance:
        """The whole of it.

        Args:
            name: of the registered model.
            champion: the version that it was judged against.
            gate: sha256 of the gate's record.
        """
        trained = self.links["grpo"].circumstances
        code = {key: trained[key] for key in ("commit", "clean") if key in trained}
        reference = [Resource("reference evaluation", self.reference)] if self.reference else []
        image = [Resource("container image", "", notes={"image": trained["image"]})] if "image" in trained else []
        beaten = []
        if champion:
            beaten = [Resource("champion", champion.digest, FOLDER, {"version": f"{name}:{champion.number}"})]
        dependencies = [
            self.objects["snapshot"],
            *([self.objects[BASE]] if BASE in self.objects else []),
            self.objects["code"],
            Resource("git commit", "", notes=code),
            self.objects[LOCK],
            *image,
            *beaten,
            *reference,
        ]
        taken = {each.name for each in dependencies} | {"model"}
        byproducts = [each for name, each in self.objects.items() if name not in taken]
        run = self.launch.circumstances.get("run", "")
        return Provenance(
            subject=self.model,
            parameters={"config": self.config, "source": self.source, "seed": self.launch.seed},
            internal={"fingerprint": self.launch.fingerprint, "reference": self.reference},
            dependencies=named(dependencies),
            byproducts=named([*byproducts, Resource("gate", gate)]),
            run=run,
            parents=tuple(sorted({link.run for link in self.links.values()} - {run, ""})),
        )


def account(attestations: Iterable[str], launch: Launch, keys: Keyring, config: Any, store: Store) -> Account:
    """Put together what made a model by following the attestations of its steps.

    Args:
        attestations: sha256 of those of the last steps; all others are found from them.
        launch: of the run.
        keys: who is trusted.
        config: of the step register itself.
        store: where everything is kept.

    Raises:
        HardcaseError: something cannot be accounted for; nothing is registered then.
    """
    found = follow(store, keys, attestations)
    links = {link.step: link for link in found.values()}
    unknown = [f"no record of the step {step}" for step in NEEDED if step not in links]
    unknown += [
        f"two unlike records of the step {step}"
        for step, last in links.items()
        if any(link.step == step and link.content != last.content for link in found.values())
    ]
    base = {name: digest for name, digest in links["sft"].materials.items() if name == BASE} if "sft" in links else {}
    unknown += gaps(list(links.values()), base.values())
    if {str(link.parameters.get("code")) for link in links.values()} | {code_digest()} != {launch.code}:
        unknown.append("the code changed since the run was launched")
    if unknown:
        raise HardcaseError(
            f"cannot account for the model: {'; '.join(unknown)}; nothing was registered, run again to make it anew"
        )
    if keep_code(store) != launch.code:
        raise HardcaseError("the code changed while it was kept; nothing was registered, run again")
    objects = [
        Resource(name, digest, link.kind(name)) for link in links.values() for name, digest in link.products.items()
    ]
    objects += [Resource(name, digest, FOLDER) for name, digest in base.items()]
    for resource in objects:
        check_product(store, resource.digest, resource.kind)
    objects += [Resource("code", launch.code, FOLDER), Resource("sbom", store.put_object(sbom()))]
    objects += [Resource(LOCK, json.loads(store.get_object(launch.code))[LOCK])]
    records = {link.step: digest for digest, link in found.items()}
    objects += [Resource(f"record of {step}", digest, ENVELOPE) for step, digest in records.items()]
    configuration = {link.section: link.parameters["config"] for link in links.values() if "config" in link.parameters}
    configuration |= {"model": links["sft"].parameters["model"], "register": config.model_dump(mode="json")}
    return Account(links, {each.name: each for each in objects}, launch, configuration, store)
