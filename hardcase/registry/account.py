"""What a model was made of: put together from the signed records of the steps, and kept in the store."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hardcase.errors import HardcaseError, InputError
from hardcase.provenance.attestations import Attestation, find_gaps, follow
from hardcase.provenance.code import LOCK, code_digest, keep_code
from hardcase.provenance.products import check_product
from hardcase.provenance.sbom import sbom
from hardcase.provenance.signing import Keyring
from hardcase.provenance.statement import ENVELOPE, FOLDER, Provenance, Resource, index_resources
from hardcase.registry.ledger import Version
from hardcase.store.store import Store

BASE: Final = "base_model"
REWARDS: Final = "reward_files"
GIVEN: Final = (BASE, REWARDS)  # folders that a step read and no step wrote
NEEDED: Final = ("snapshot", "model", "mined", "grpo_log", "evaluation", "scores", "drift")


@dataclass(frozen=True)
class Account:
    """Everything that a model was made of and that was made on the way: attestations and configuration by step.

    `plan` holds the parameters of the step `register`, `circumstances` its run, git commit and container image.
    """

    links: Mapping[str, Attestation]
    objects: Mapping[str, Resource]
    plan: Mapping[str, Any]
    circumstances: Mapping[str, str]
    config: Mapping[str, Any]
    store: Store

    def read(self, name: str) -> bytes:
        """Return the bytes of the object of that name."""
        return self.store.get_object(self.objects[name].digest)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object of that name; `InputError` if it is something else."""
        try:
            content = json.loads(self.read(name))
        except ValueError as error:
            raise InputError(f"{name}: not JSON ({error}); run the step that makes it again") from error
        if not isinstance(content, dict):
            raise InputError(f"{name}: not a JSON object; run the step that makes it again")
        return content

    def maker(self, product: str) -> Attestation:
        """Return the attestation of the step that made a product."""
        return next(link for link in self.links.values() if product in link.products)

    @property
    def model(self) -> str:
        """Return the digest of the model's folder."""
        return self.objects["model"].digest

    @property
    def evaluation(self) -> str:
        """Return the sha256 of the table that the gate judges."""
        return self.objects["evaluation"].digest

    @property
    def reference(self) -> str:
        """Return the sha256 of the evaluation that drift compared with, or an empty text."""
        return str(self.maker("drift").parameters["reference"])

    @property
    def source(self) -> str:
        """Return the URI of the data."""
        return str(self.maker("snapshot").parameters["source"][0])

    @property
    def seed(self) -> int:
        """Return the seed of everything that was drawn."""
        return int(self.plan["seed"])

    @property
    def pinned(self) -> str:
        """Return the number of the champion when the run was launched; empty for none."""
        return str(self.plan["champion"])

    def provenance(self, name: str, champion: Version | None, gate: str) -> Provenance:
        """Return the provenance of a version of the model `name`, with the sha256 of the gate's record."""
        trained = self.maker("model").circumstances
        code = {key: trained[key] for key in ("commit", "clean") if key in trained}
        dependencies = [self.objects[name] for name in ("snapshot", *GIVEN, "code") if name in self.objects]
        dependencies += [Resource("git commit", "", notes=code), self.objects[LOCK]]
        if "image" in trained:
            dependencies.append(Resource("container image", "", notes={"image": trained["image"]}))
        if champion:
            version = {"version": f"{name}:{champion.number}"}
            dependencies.append(Resource("champion", champion.digest, FOLDER, version))
        if self.reference:
            dependencies.append(Resource("reference evaluation", self.reference))
        used = {resource.name for resource in dependencies} | {"model"}
        byproducts = [resource for name, resource in self.objects.items() if name not in used]
        run = self.circumstances.get("run", "")
        return Provenance(
            subject=self.model,
            parameters={"config": self.config, "source": self.source, "seed": self.seed},
            internal={"fingerprint": self.plan["fingerprint"], "reference": self.reference},
            dependencies=index_resources(dependencies),
            byproducts=index_resources([*byproducts, Resource("gate", gate)]),
            run=run,
            parents=tuple(sorted({link.run for link in self.links.values()} - {run, ""})),
        )


def gather_account(
    attestations: Iterable[str], plan: Mapping[str, Any], circumstances: Mapping[str, str], keys: Keyring, store: Store
) -> Account:
    """Put together what made a model by following the attestations of its last steps.

    Raises:
        HardcaseError: something cannot be accounted for; nothing is registered then.
    """
    records = follow(store, keys, attestations)
    links = {link.step: link for link in records.values()}
    products = {name for link in links.values() for name in link.products}
    unknown = [f"no step made {name}" for name in NEEDED if name not in products]
    unknown += [
        f"two unlike records of the step {step}"
        for step, last in links.items()
        if any(link.step == step and link.content != last.content for link in records.values())
    ]
    given = {name: digest for link in links.values() for name, digest in link.materials.items() if name in GIVEN}
    unknown += find_gaps(list(links.values()), given.values())
    if {str(link.parameters.get("code")) for link in links.values()} | {code_digest()} != {plan["code"]}:
        unknown.append("the code changed since the run was launched")
    if unknown:
        raise HardcaseError(
            f"cannot account for the model: {'; '.join(unknown)}; nothing was registered; run again to make them"
        )
    if keep_code(store) != plan["code"]:
        raise HardcaseError("the code changed while it was kept; nothing was registered, run again")
    objects = [
        Resource(name, digest, link.media_type(name))
        for link in links.values()
        for name, digest in link.products.items()
    ]
    objects += [Resource(name, digest, FOLDER) for name, digest in given.items()]
    for resource in objects:
        check_product(store, resource.digest, resource.kind)
    objects += [Resource("code", plan["code"], FOLDER), Resource("sbom", store.put_object(sbom()))]
    objects += [Resource(LOCK, json.loads(store.get_object(plan["code"]))[LOCK])]
    objects += [Resource(f"record of {link.step}", digest, ENVELOPE) for digest, link in records.items()]
    config = {link.section: link.parameters["config"] for link in links.values() if "config" in link.parameters}
    config["model"] = next(link.parameters["model"] for link in links.values() if "model" in link.parameters)
    config |= {"register": plan["config"], "cluster": plan["cluster"]}
    return Account(links, {resource.name: resource for resource in objects}, plan, circumstances, config, store)
