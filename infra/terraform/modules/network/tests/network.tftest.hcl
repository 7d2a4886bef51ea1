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

  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mocked" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mocked" }
  }
}

variables {
  name        = "hardcase"
  cidr        = "10.10.0.0/16"
  zones       = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
}

run "three_zones_of_three_kinds" {
  assert {
    condition     = length(aws_subnet.private) == 3 && length(aws_subnet.public) == 3 && length(aws_subnet.intra) == 3
    error_message = "Private, public and intra subnets lie in each of three zones."
  }
  assert {
    condition     = length(distinct(concat(values(local.private), values(local.public), values(local.intra)))) == 9
    error_message = "No two subnets share a range."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.private : subnet.tags["karpenter.sh/discovery"] == "hardcase"])
    error_message = "Karpenter finds subnets by this tag."
  }
  assert {
    condition     = alltrue([for subnet in aws_subnet.public : subnet.map_public_ip_on_launch != true])
    error_message = "Nothing gets a public address unasked."
  }
  assert {
    condition     = length(aws_default_security_group.this.ingress) == 0 && length(aws_default_security_group.this.egress) == 0
    error_message = "The default group lets nothing through."
  }
}

run "a_nat_gateway_in_each_zone" {
  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(aws_route.nat) == 3
    error_message = "Each zone goes out by itself."
  }
  assert {
    condition     = alltrue([for zone, route in aws_route.nat : route.nat_gateway_id == aws_nat_gateway.this[zone].id])
    error_message = "By the gateway of its own zone."
  }
}

run "one_nat_gateway_for_all" {
  variables {
    nat_per_zone = false
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(distinct([for route in aws_route.nat : route.nat_gateway_id])) == 1
    error_message = "Development pays for one."
  }
}

run "endpoints_and_flow_logs" {
  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && length(aws_vpc_endpoint.s3.route_table_ids) == 4
    error_message = "S3 is reached inside the VPC from nodes and from the intra subnets."
  }
  assert {
    condition     = length(setsubtract(["ecr.api", "ecr.dkr", "sts", "eks-auth", "kms", "logs", "secretsmanager"], keys(aws_vpc_endpoint.interface))) == 0
    error_message = "ECR, STS, Pod Identity, KMS, logs and secrets are reached inside the VPC."
  }
  assert {
    condition     = alltrue([for endpoint in aws_vpc_endpoint.interface : endpoint.private_dns_enabled])
    error_message = "By their usual names."
  }
  assert {
    condition     = aws_flow_log.this.traffic_type == "ALL" && aws_cloudwatch_log_group.flow.kms_key_id == var.kms_key_arn
    error_message = "All traffic is logged, encrypted by our key."
  }
}

run "a_range_too_small_is_refused" {
  command = plan
  variables {
    cidr = "10.10.0.0/24"
  }
  expect_failures = [var.cidr]
}

run "no_range_at_all_is_refused" {
  command = plan
  variables {
    cidr = "10.10.0.0"
  }
  expect_failures = [var.cidr]
}

run "two_zones_are_refused" {
  command = plan
  variables {
    zones = ["eu-central-1a", "eu-central-1b"]
  }
  expect_failures = [var.zones]
}

run "a_zone_that_the_region_lacks_is_refused" {
  command = plan
  variables {
    zones = ["eu-central-1a", "eu-central-1b", "eu-central-1d"]
  }
  expect_failures = [data.aws_availability_zones.this]
}
