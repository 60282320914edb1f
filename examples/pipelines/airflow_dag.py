"""A search as a task of Airflow. Its outcome goes to the next task by XCom, whose value is the last line of output."""

import json

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task


@dag(
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    params={"manifest": "/opt/airflow/searches/digits.yaml"},
)
def search() -> None:
    """Search, then hand the best network on."""
    submit = BashOperator(
        task_id="submit",
        # Below the task's own timeout, so that the task ends by itself. A retry waits for the same search.
        bash_command='nas submit "$MANIFEST" --wait --timeout 23h -o json',
        env={"MANIFEST": "{{ params.manifest }}"},
        append_env=True,
        execution_timeout=pendulum.duration(hours=24),
        retries=3,
        do_xcom_push=True,
    )

    @task
    def hand_on(line: str) -> str:
        outcome = json.loads(line)
        print(f"{outcome['best']['metricName']} {outcome['best']['metric']}")
        # s3://..., or where the architecture is, without spec.finalTraining.
        return str(outcome["modelUri"] or outcome["best"]["uri"])

    hand_on(submit.output)


search()
