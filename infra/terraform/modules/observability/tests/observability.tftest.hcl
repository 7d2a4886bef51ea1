mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }

  mock_resource "aws_sns_topic" {
    defaults = { arn = "arn:aws:sns:eu-central-1:123456789012:hardcase-alarms" }
  }
  mock_resource "aws_ce_anomaly_monitor" {
    defaults = { arn = "arn:aws:ce::123456789012:anomalymonitor/00000000-0000-0000-0000-000000000000" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mocked" }
  }
}

variables {
  kms_key_arn        = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  emails             = ["alarms@example.com"]
  monthly_budget     = 600
  gpu_budget         = 200
  nat_gateway_ids    = { eu-central-1a = "nat-1" }
  interruption_queue = "hardcase"
}

run "money" {
  assert {
    condition     = aws_budgets_budget.this["all"].limit_amount == "600" && aws_budgets_budget.this["gpus"].limit_amount == "200"
    error_message = "A budget for all, and one for GPUs."
  }
  assert {
    condition     = one(one(aws_budgets_budget.this["gpus"].cost_filter).values) == "user:pool$gpu"
    error_message = "GPUs by the tag that nodes carry."
  }
  assert {
    condition     = alltrue([for budget in aws_budgets_budget.this : length(budget.notification) == 3])
    error_message = "Told of 80 % forecast, of 80 % and of 100 % spent."
  }
  assert {
    condition     = one(aws_ce_anomaly_subscription.this.subscriber).type == "SNS" && aws_ce_anomaly_monitor.this.monitor_dimension == "SERVICE"
    error_message = "What is unusual is told."
  }
}

run "alarms" {
  assert {
    condition     = toset(keys(aws_cloudwatch_metric_alarm.this)) == toset(["karpenter-deaf", "nat-eu-central-1a"])
    error_message = "Without a database there are no alarms of one."
  }
  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : alarm.alarm_actions == toset([aws_sns_topic.alarms.arn])])
    error_message = "All reach the topic."
  }
  assert {
    condition     = aws_sns_topic.alarms.kms_master_key_id == var.kms_key_arn && length(aws_prometheus_workspace.this) == 0
    error_message = "Notices are encrypted; managed Prometheus is asked for."
  }
}

run "with_database_and_prometheus" {
  variables {
    database   = { identifier = "hardcase", storage_gib = 50 }
    prometheus = true
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["database-disk"].threshold == 5368709120
    error_message = "A tenth of 50 GiB."
  }
  assert {
    condition     = aws_prometheus_workspace.this[0].kms_key_arn == var.kms_key_arn
    error_message = "Metrics are encrypted by our key."
  }
}

run "a_negative_budget_is_refused" {
  command = plan
  variables {
    monthly_budget = -1
  }
  expect_failures = [var.monthly_budget]
}

run "more_for_gpus_than_for_all_is_refused" {
  command = plan
  variables {
    gpu_budget = 1000
  }
  expect_failures = [var.gpu_budget]
}

run "alarms_that_reach_nobody_are_refused" {
  command = plan
  variables {
    emails = []
  }
  expect_failures = [var.emails]
}
