# Nodes. A few of ours, on which Karpenter runs, which makes all others; and groups with GPUs where they are asked for.
# Bottlerocket: no shell, a read-only root, NVIDIA's driver and device plugin inside.

locals {
  # karpenter: the role that EC2NodeClasses name. EKS writes the access entry of a managed group's role itself, so that role
  # is another one.
  node_roles    = { karpenter = "${var.name}-node", managed = "${var.name}-managed-node" }
  node_policies = ["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"]

  # Bottlerocket binds containers and their scratch to the NVMe disks.
  nvme_settings = <<-EOT
    [settings.bootstrap-commands.local-disks]
    commands = [
      ["apiclient", "ephemeral-storage", "init"],
      ["apiclient", "ephemeral-storage", "bind", "--dirs", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"],
    ]
    essential = true
    mode = "always"
  EOT
}

resource "aws_iam_role" "node" {
  for_each           = local.node_roles
  name               = each.value
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
}

data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = {
    for pair in setproduct(keys(local.node_roles), local.node_policies) : "${pair[0]}-${pair[1]}" => { role = pair[0], policy = pair[1] }
  }
  role       = aws_iam_role.node[each.value.role].name
  policy_arn = "${local.policy_arn}/${each.value.policy}"
}

resource "aws_eks_access_entry" "karpenter_nodes" {
  cluster_name  = aws_eks_cluster.this.name
  principal_arn = aws_iam_role.node["karpenter"].arn
  type          = "EC2_LINUX"
}

resource "aws_launch_template" "system" {
  name                   = "${var.name}-system"
  update_default_version = true
  vpc_security_group_ids = [aws_security_group.nodes.id]

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # /dev/xvda is Bottlerocket's own, /dev/xvdb holds containers.
  dynamic "block_device_mappings" {
    for_each = { "/dev/xvda" = 20, "/dev/xvdb" = 50 }
    content {
      device_name = block_device_mappings.key
      ebs {
        volume_type           = "gp3"
        volume_size           = block_device_mappings.value
        encrypted             = true
        delete_on_termination = true
      }
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = { Name = "${var.name}-system", project = "hardcase", pool = "system" }
    }
  }
}

resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.node["managed"].arn
  subnet_ids      = values(var.node_subnet_ids)
  ami_type        = "BOTTLEROCKET_x86_64"
  instance_types  = var.system_instance_types
  labels          = { "hardcase.io/pool" = "system" }

  launch_template {
    id      = aws_launch_template.system.id
    version = aws_launch_template.system.latest_version
  }

  scaling_config {
    min_size     = var.system_nodes.min
    desired_size = var.system_nodes.min
    max_size     = var.system_nodes.max
  }

  update_config {
    max_unavailable = 1
  }

  depends_on = [aws_eks_addon.early, aws_iam_role_policy_attachment.node]
}

resource "aws_placement_group" "gpu" {
  for_each = { for name, group in var.gpu_node_groups : name => group if group.efa }
  name     = "${var.name}-${each.key}"
  strategy = "cluster"
}

resource "aws_launch_template" "gpu" {
  for_each               = var.gpu_node_groups
  name                   = "${var.name}-${each.key}"
  update_default_version = true
  instance_type          = each.value.instance_type
  vpc_security_group_ids = each.value.efa ? null : [aws_security_group.nodes.id]
  user_data              = base64encode(local.nvme_settings)

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  dynamic "block_device_mappings" {
    for_each = { "/dev/xvda" = 20, "/dev/xvdb" = 50 }
    content {
      device_name = block_device_mappings.key
      ebs {
        volume_type           = "gp3"
        volume_size           = block_device_mappings.value
        encrypted             = true
        delete_on_termination = true
      }
    }
  }

  # Card 0 carries addresses too; the others only EFA.
  dynamic "network_interfaces" {
    for_each = each.value.efa ? range(local.gpu_types[each.value.instance_type].efa) : []
    content {
      device_index          = network_interfaces.value == 0 ? 0 : 1
      network_card_index    = network_interfaces.value
      interface_type        = network_interfaces.value == 0 ? "efa" : "efa-only"
      security_groups       = [aws_security_group.nodes.id]
      delete_on_termination = true
    }
  }

  dynamic "placement" {
    for_each = each.value.efa ? [1] : []
    content {
      group_name = aws_placement_group.gpu[each.key].name
    }
  }

  dynamic "instance_market_options" {
    for_each = each.value.capacity == "CAPACITY_BLOCK" ? [1] : []
    content {
      market_type = "capacity-block"
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.value.reservation == null ? [] : [each.value.reservation]
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = { Name = "${var.name}-${each.key}", project = "hardcase", pool = "gpu" }
    }
  }
}

# At nothing until somebody scales it: no node is paid for because this was applied.
resource "aws_eks_node_group" "gpu" {
  for_each        = var.gpu_node_groups
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node["managed"].arn
  subnet_ids      = [var.node_subnet_ids[each.value.zone]]
  ami_type        = "BOTTLEROCKET_x86_64_NVIDIA"
  capacity_type   = each.value.capacity
  labels          = { "hardcase.io/gpu-memory" = local.gpu_types[each.value.instance_type].memory }

  launch_template {
    id      = aws_launch_template.gpu[each.key].id
    version = aws_launch_template.gpu[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    desired_size = each.value.min
    max_size     = each.value.max
  }

  taint {
    key    = "nvidia.com/gpu"
    value  = "true"
    effect = "NO_SCHEDULE"
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
  depends_on = [aws_eks_addon.early, aws_iam_role_policy_attachment.node]
}
