"""Client of Kubeflow Pipelines' v2beta1 REST API: connect, launch, watch.

The rules are generators that know no socket: they yield requests and receive answers. `client` runs them, blocking
or asynchronously, so the command line and Airflow's provider share every rule. The package imports only the standard
library and httpx, because Airflow installs hardcase without its dependencies.

    address    where Kubeflow is, and the token
    requests   one request: how it looks, what its answer means, when it is tried again
    launching  find or create versions, runs and schedules
    runs       read a run: its steps, how far it is, how it ended
    watching   watch a run until it ends
    client     run the rules over httpx

`kfp.Client` 2.17 will not do: its requests have no time-out, it waits for ever on a cancelled run, asks Google for a
new token when one expires, prints links to standard output, and takes cookies and the namespace from a file in the
home folder.
"""
